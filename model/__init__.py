"""The action-controllable causal world model (paper section 4). Of `curation` it knows shards, cameras' files and VLMs."""
