"""Everything drawn or tabulated for people: figures, HTML pages, tables in the terminal."""
