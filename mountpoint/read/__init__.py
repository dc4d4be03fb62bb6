"""Reading one object: which ranges to fetch, fetching them, handing them out."""
