"""One HTML file to look at: the plots of a selection, and rows of it with their steps coloured by score."""
