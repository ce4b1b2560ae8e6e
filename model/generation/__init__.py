"""Make the videos of a test set: with our worlds, or with other models under the settings of the paper's comparison."""
