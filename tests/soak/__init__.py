"""Everything that a long session does, over and over in one process, with its memory and open files watched."""
