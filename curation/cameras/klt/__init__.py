"""The embedded camera estimator: corners followed through a clip, and structure from motion on their tracks."""
