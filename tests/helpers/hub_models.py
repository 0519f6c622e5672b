"""How models of the stand-in for the Hub are listed and written: routes of tests/helpers/hub_mirror.py.

Writing takes the token TOKEN, which belongs to the user OWNER.
"""

import base64
import json
import urllib.parse

TOKEN, OWNER = "hf_token_of_the_tests", "me"


def read_tags(folder):
    """The tags of a model: those on its card and, as on the Hub, some that say what else stands there."""
    from huggingface_hub import metadata_load

    card = folder / "README.md"
    metadata = (metadata_load(card) if card.is_file() else None) or {}
    base_models = metadata.get("base_model", [])
    base_models = [base_models] if isinstance(base_models, str) else base_models
    return [
        *metadata.get("tags", []),
        *(f"base_model:{relation}{name}" for name in base_models for relation in ("", "finetune:")),
        *(f"dataset:{name}" for name in metadata.get("datasets", [])),
        *([f"license:{metadata['license']}"] if "license" in metadata else []),
    ]


class ModelRoutes:
    """Methods of the handler of requests, which has `hub`, `reply_json`, `refuse` and `not_found`."""

    def may_write(self):
        """Whether there is a token; if not, that is the answer."""
        if not self.headers.get("Authorization"):
            self.refuse(401, "Invalid username or password.")
        return bool(self.headers.get("Authorization"))

    def list_models(self, query, **_):
        self.hub.requests.append("api/models")
        wanted, start = set(query.get("filter", [])), int(query.get("cursor", ["0"])[0])
        size = int(query.get("limit", [self.hub.page_size])[0])
        folders = sorted((self.hub.root / "models").glob("*/*"), reverse=True)  # the Hub sorts by popularity
        folders = [folder for folder in folders if wanted <= set(read_tags(folder))]
        following = urllib.parse.urlencode(query | {"cursor": [start + size]}, doseq=True)
        headers = {"Link": f'<{self.hub.url}/api/models?{following}>; rel="next"'}
        models = [
            {"id": f"{folder.parent.name}/{folder.name}", "tags": read_tags(folder)}
            for folder in folders[start : start + size]
        ]
        self.reply_json(models, headers if start + size < len(folders) else None)

    def redirect_to_owner(self, name):
        """Names without owner are of old; the Hub sends to the repository that had them."""
        folder = next((self.hub.root / "models").glob(f"*/{name}"), None)
        if folder is None:
            return self.not_found("RepoNotFound")
        return self.reply(307, headers={"Location": f"/api/models/{folder.parent.name}/{name}"})

    def create(self, body, **_):
        request = json.loads(body)
        owner, name = request["organization"] or OWNER, request["name"]
        if not self.may_write():
            return None
        if owner != OWNER:
            return self.refuse(
                403, f'You don\'t have the rights to create a model under the namespace "{owner}"'
            )
        folder = self.hub.root / "models" / owner / name
        if folder.is_dir():
            return self.refuse(
                409, "You already created this model repo", url=f"{self.hub.url}/{owner}/{name}"
            )
        folder.mkdir(parents=True)
        return self.reply_json({"url": f"{self.hub.url}/{owner}/{name}", "id": f"{owner}/{name}"})

    def validate_card(self, body, **_):
        content = json.loads(body)["content"]
        errors = [] if content.startswith("---\n") else [{"message": "there are no metadata"}]
        self.reply_json({"errors": errors, "warnings": []}, code=400 if errors else 200)

    def preupload(self, folder, name, revision, body, **_):
        if self.may_write():
            paths = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]
            self.reply_json({"files": modes})

    def write_commit(self, folder, name, revision, body, **_):
        if not self.may_write():
            return
        header, *changes = map(json.loads, body.splitlines())
        assert header["key"] == "header" and header["value"]["summary"]
        for change in changes:
            file = folder / change["value"]["path"]
            if change["key"] == "deletedFile":
                file.unlink()
            else:
                assert (change["key"], change["value"]["encoding"]) == ("file", "base64")
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(base64.b64decode(change["value"]["content"]))
        self.hub.n_writes += 1
        oid = self.hub.commit(revision)
        self.reply_json({"commitUrl": f"{self.hub.url}/{name}/commit/{oid}", "commitOid": oid})
