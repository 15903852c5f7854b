"""How a text answer is read: one parser for rewards and for evaluation. Text in, `Parsed` out; nothing is ever guessed."""
