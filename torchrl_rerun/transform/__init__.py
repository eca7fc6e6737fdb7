"""The front end for TorchRL: a transform that reads tensordicts of an environment."""
