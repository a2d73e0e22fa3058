"""Reports as HTML: figures by right, sections, pictures, page."""
