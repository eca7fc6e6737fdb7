"""The thread that writes, and where to: a file, a folder of episodes, live viewers, recording streams."""
