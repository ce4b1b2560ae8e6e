"""The action-controllable world model (stages 1 and 2 of the paper). It uses shards, camera files and weights of `curation`."""
