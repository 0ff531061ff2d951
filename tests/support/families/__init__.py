"""What the models of each family write, and checks of everything that reads it."""
