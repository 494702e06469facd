"""What joins several parts of the program, or looks at all of them."""
