"""The file format: messages, indexes, layouts in files, whole files out of torn ones, and what lies in folders."""
