"""Training of the small models that ship with the package: each script collects its own data and writes weights and a card."""
