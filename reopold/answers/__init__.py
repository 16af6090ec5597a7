"""Reading the answer out of a response, and judging it: outcome rewards and graders share this."""
