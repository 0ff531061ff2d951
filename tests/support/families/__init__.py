"""The answers that models of each family write, and checks of everything that reads them."""
