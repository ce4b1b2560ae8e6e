"""The action-controllable causal world model (paper section 4). From `curation` it uses shards, camera files and weights."""
