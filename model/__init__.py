"""The action-controllable causal world model (paper section 4). Knows `curation.schema` and `curation.shards`, nothing else."""
