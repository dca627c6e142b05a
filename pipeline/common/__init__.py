"""What several commands share: params, paths, the command line, reading and writing of results."""
