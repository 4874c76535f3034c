"""What the blocks of a teacher do: scores of each, and which of them a student can do without."""
