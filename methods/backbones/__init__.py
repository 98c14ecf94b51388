"""timm models, cut into stem, blocks and tail; heads and decoders. Importing it registers the families that ship."""

from methods.backbones import families as families
