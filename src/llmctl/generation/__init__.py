"""From a prompt to text: the prompt as ids (prompt), and the tokens as they come (stream)."""
