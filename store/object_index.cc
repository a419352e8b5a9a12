#include "store/object_index.h"

#include "base/limits.h"
#include "base/log.h"

namespace kvtier {

ObjectIndex::ObjectPtr ObjectIndex::Find(const TenantId& tenant, const Key& key) const {
  const auto found = objects_.find(Name{tenant, key});
  return found == objects_.end() ? nullptr : found->second;
}

ObjectIndex::ObjectPtr ObjectIndex::FindUpload(const UploadId& upload) const {
  const auto found = uploads_.find(upload);
  return found == uploads_.end() ? nullptr : found->second;
}

void ObjectIndex::Insert(const ObjectPtr& object) {
  const bool is_new = uploads_.emplace(object->upload(), object).second &&
                      objects_.emplace(Name{object->tenant, object->manifest->key}, object).second;
  KVTIER_CHECK(is_new) << "upload " << object->upload().ToHex() << " or its key is known already";
  AddPrefix(*object);
}

void ObjectIndex::Retire(const ObjectPtr& object) {
  if (object->retired) return;
  object->retired = true;
  RemovePrefix(*object);
  objects_.erase(Name{object->tenant, object->manifest->key});
}

void ObjectIndex::Forget(const ObjectPtr& object) {
  KVTIER_CHECK(object->retired);
  uploads_.erase(object->upload());
}

ObjectIndex::ObjectPtr ObjectIndex::Next(const std::optional<ObjectName>& after) const {
  const auto next =
      after.has_value() ? objects_.upper_bound(Name(after->tenant, after->key)) : objects_.begin();
  return next == objects_.end() ? nullptr : next->second;
}

std::vector<ObjectIndex::ObjectPtr> ObjectIndex::List(const TenantId& tenant,
                                                      const std::optional<Key>& after,
                                                      size_t limit) const {
  std::vector<ObjectPtr> listed;
  auto at = after.has_value() ? objects_.upper_bound(Name{tenant, *after})
                              : objects_.lower_bound(Name{tenant, Key()});
  for (; at != objects_.end() && at->first.first == tenant && listed.size() < limit; ++at) {
    listed.push_back(at->second);
  }
  return listed;
}

namespace {

PrefixMatch PrefixOf(const ObjectState& object) {
  static_assert(limits::kContextTokensMax <= UINT32_MAX);
  return {.context_tokens = static_cast<uint32_t>(object.manifest->context_tokens),
          .upload = object.upload()};
}

}  // namespace

void ObjectIndex::AddPrefix(const ObjectState& object) {
  const TokenBlockHash& hash = object.manifest->last_block_hash;
  if (!hash.IsZero()) prefixes_.Insert(object.tenant, hash, PrefixOf(object));
}

void ObjectIndex::RemovePrefix(const ObjectState& object) {
  const TokenBlockHash& hash = object.manifest->last_block_hash;
  if (!hash.IsZero()) prefixes_.Remove(object.tenant, hash, PrefixOf(object));
}

std::vector<ObjectIndex::ObjectPtr> ObjectIndex::All() const {
  std::vector<ObjectPtr> all;
  for (const auto& [name, object] : objects_) all.push_back(object);
  return all;
}

}  // namespace kvtier
