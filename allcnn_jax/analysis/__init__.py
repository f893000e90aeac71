"""WHAT was learned. Imports the other rooms; none of them imports it."""
