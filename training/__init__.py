"""What a long run needs besides the maths."""
