"""What a served model holds beside its network: the catalog's attributes and the requests that warm it up."""
