"""What handlers find in their application."""

from aiohttp import web

from osaurusd.models.catalog import Catalog
from osaurusd.pool.pool import Pool
from osaurusd.settings import Settings

SETTINGS = web.AppKey("SETTINGS", Settings)
CATALOG = web.AppKey("CATALOG", Catalog)
POOL = web.AppKey("POOL", Pool)
