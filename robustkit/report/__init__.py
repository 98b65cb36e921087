"""What a finished run looks like: files, tables, plots, pages."""
