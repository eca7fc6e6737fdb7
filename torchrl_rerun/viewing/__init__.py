"""The viewer, started and looked at: windows, browsers, notebooks, pictures of it, comparisons in it."""
