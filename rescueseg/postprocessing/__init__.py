"""From probabilities to masks: what is cleaned before a person sees them."""
