"""The operations of the service; `table` says which there are and what each needs before it runs."""
