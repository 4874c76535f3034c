"""What a network costs, in numbers and in time."""
