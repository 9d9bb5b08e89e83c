"""The commands: options, checks before anything is written, training, evaluation and what they leave."""
