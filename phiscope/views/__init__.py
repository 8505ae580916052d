"""What a store holds, to look at: a table, and a picture for a file or the terminal."""
