"""The stages as functions: each unpacks its inputs, calls the library, and writes its artifact's payload."""
