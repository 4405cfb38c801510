"""What a machine is: the grammar of states and rows, its validation, its executor."""
