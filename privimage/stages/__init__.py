"""The stages, a file each: each unpacks its inputs, calls the library, and writes its artifact's payload."""
