"""Does what a score selects help, by how much, with what certainty? A lab to run, read and fork: see README.md."""
