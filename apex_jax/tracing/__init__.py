"""What ran when: recording it, keeping it in files, drawing it."""
