"""What an engine exposes and what it means, as data: `rules` is the vocabulary, `built_in` has a module for each."""
