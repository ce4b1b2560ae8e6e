"""The functions behind the commands of `gamecraft`, by what they are about; `pipelines.cli` names them."""
