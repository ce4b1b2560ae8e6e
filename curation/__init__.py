"""What a clip is, and section 3.4 of the paper on arrays. No Ray, no column names outside `schema`."""

from curation import _torchvision

_torchvision.install()
