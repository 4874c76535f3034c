"""The removal plan of a student, and its teacher's weights."""
