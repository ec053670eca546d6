"""What a trained run says, and what it is worth."""
