"""The Rerun viewer: in windows, browsers and notebooks; screenshots of it, and comparisons of runs in it."""
