"""Everything that is a network: which there are, how pixels enter one, the file it travels in, where it runs."""
