"""The book: parameters of notebooks, chapters, execution, pages."""
