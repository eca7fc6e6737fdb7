"""The engine: steps become frames of a recording; counters, triggers, and which episodes stay."""
