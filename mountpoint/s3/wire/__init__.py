"""Pure: what requests and answers look like on the wire, and what answers mean."""
