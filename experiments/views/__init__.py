"""What a view is, and the tables, pages and figures in the text that views share."""
