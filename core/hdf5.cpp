#include "core/hdf5.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <hdf5.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <map>
#include <mutex>
#include <utility>

#include "core/errors.h"
#include "core/files.h"

namespace cinch {
namespace {

constexpr const char* kDtypeAttribute = "cinch_dtype";
constexpr const char* kTypePrefix = "cinch_type_";  // of committed types, except the well-known one
constexpr const char* kBfloat16 = "bfloat16";
constexpr hsize_t kAlignment = 4096;

/// libhdf5 as Debian builds it is not thread-safe.
std::mutex& hdf5_mutex() {
  static std::mutex mutex;
  return mutex;
}

template <herr_t (*Close)(hid_t)>
class Handle {
 public:
  explicit Handle(hid_t id) : id_(id) {}
  ~Handle() {
    if (id_ >= 0) Close(id_);
  }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  hid_t release() { return std::exchange(id_, -1); }
  operator hid_t() const { return id_; }  // NOLINT: stands for the id in every HDF5 call

 private:
  hid_t id_;
};
using File = Handle<H5Fclose>;
using Dataset = Handle<H5Dclose>;
using Space = Handle<H5Sclose>;
using Type = Handle<H5Tclose>;
using Property = Handle<H5Pclose>;
using Attribute = Handle<H5Aclose>;
using Object = Handle<H5Oclose>;

/// Before the first call of anything else. Handles close themselves, so libhdf5 has nothing to tidy up at exit; it
/// would crash there on a file whose close failed because the disk was full.
void prepare_hdf5() {
  static const bool done = [] {
    H5dont_atexit();
    H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
    return true;
  }();
  (void)done;
}

template <typename Failure>
hid_t checked(hid_t result, const std::filesystem::path& path, std::string_view what) {
  if (result < 0) throw Failure(fmt::format("{}: HDF5: {}", path.string(), what));
  return result;
}

/// Little-endian file types of what cinch stores; small floats are raw integers of their size under a committed type.
hid_t make_type(Dtype dtype) {
  switch (dtype) {
    case Dtype::kF64:
      return H5Tcopy(H5T_IEEE_F64LE);
    case Dtype::kF32:
      return H5Tcopy(H5T_IEEE_F32LE);
    case Dtype::kF16: {
      const hid_t half = H5Tcopy(H5T_IEEE_F32LE);
      H5Tset_fields(half, 15, 10, 5, 0, 10);
      H5Tset_size(half, 2);
      H5Tset_ebias(half, 15);
      return half;
    }
    case Dtype::kI64:
      return H5Tcopy(H5T_STD_I64LE);
    case Dtype::kU64:
      return H5Tcopy(H5T_STD_U64LE);
    case Dtype::kI32:
      return H5Tcopy(H5T_STD_I32LE);
    case Dtype::kU32:
      return H5Tcopy(H5T_STD_U32LE);
    case Dtype::kI16:
      return H5Tcopy(H5T_STD_I16LE);
    case Dtype::kU16:
      return H5Tcopy(H5T_STD_U16LE);
    case Dtype::kI8:
      return H5Tcopy(H5T_STD_I8LE);
    case Dtype::kU8:
      return H5Tcopy(H5T_STD_U8LE);
    case Dtype::kBF16:
      return H5Tcopy(H5T_STD_U16LE);
    case Dtype::kBool:
    case Dtype::kF8E4M3:
    case Dtype::kF8E5M2:
    case Dtype::kF8E8M0:
    case Dtype::kF8E4M3Fnuz:
    case Dtype::kF8E5M2Fnuz:
      return H5Tcopy(H5T_STD_U8LE);
    default:
      return -1;
  }
}

bool needs_committed_type(Dtype dtype) {
  return dtype == Dtype::kBF16 || dtype == Dtype::kBool || (dtype >= Dtype::kF8E4M3 && dtype <= Dtype::kF8E5M2Fnuz);
}

/// Creation properties without time stamps: the same content gives the same bytes.
hid_t timeless(hid_t property_class) {
  const hid_t creation = H5Pcreate(property_class);
  H5Pset_obj_track_times(creation, false);
  return creation;
}

std::optional<std::string> read_text_attribute(hid_t object, const char* name, const std::filesystem::path& path) {
  if (H5Aexists(object, name) <= 0) return std::nullopt;
  const Attribute attribute(
      checked<CheckpointError>(H5Aopen(object, name, H5P_DEFAULT), path, "cannot open an attribute"));
  const Type type(H5Aget_type(attribute));
  if (H5Tget_class(type) != H5T_STRING || H5Tis_variable_str(type) != 0) {
    throw CheckpointError(fmt::format("{}: HDF5: attribute {} is not a fixed-length string", path.string(), name));
  }
  std::string text(H5Tget_size(type), '\0');
  checked<CheckpointError>(H5Aread(attribute, type, text.data()), path, "cannot read an attribute");
  text.resize(std::strlen(text.c_str()) < text.size() ? std::strlen(text.c_str()) : text.size());
  return text;
}

Dtype dtype_of(hid_t type, const std::filesystem::path& path, const std::string& dataset) {
  if (H5Tcommitted(type) > 0) {
    if (const auto name = read_text_attribute(type, kDtypeAttribute, path)) {
      if (const auto dtype = dtype_from_name(*name)) return *dtype;
      throw CheckpointError(
          fmt::format("{}: tensor \"{}\": unknown {} \"{}\"", path.string(), dataset, kDtypeAttribute, *name));
    }
  }
  static constexpr std::array kPlain = {Dtype::kF64, Dtype::kF32, Dtype::kF16, Dtype::kI64, Dtype::kU64, Dtype::kI32,
                                        Dtype::kU32, Dtype::kI16, Dtype::kU16, Dtype::kI8,  Dtype::kU8};
  for (const Dtype candidate : kPlain) {
    const Type plain(make_type(candidate));
    if (H5Tequal(type, plain) > 0) return candidate;
  }
  throw CheckpointError(
      fmt::format("{}: tensor \"{}\": its HDF5 type is none that cinch stores", path.string(), dataset));
}

}  // namespace

struct Hdf5Reader::Impl {
  std::filesystem::path path;
  std::unique_ptr<File> file;
};

Hdf5Reader::Hdf5Reader(const std::filesystem::path& path) : impl_(std::make_unique<Impl>()) {
  const std::lock_guard lock(hdf5_mutex());
  prepare_hdf5();
  impl_->path = path;
  const Property access(H5Pcreate(H5P_FILE_ACCESS));
  H5Pset_file_locking(access, false, true);
  impl_->file = std::make_unique<File>(
      checked<CheckpointError>(H5Fopen(path.c_str(), H5F_ACC_RDONLY, access), path, "not a readable HDF5 file"));
}

Hdf5Reader::~Hdf5Reader() {
  const std::lock_guard lock(hdf5_mutex());
  impl_.reset();
}

namespace {

herr_t collect_name(hid_t, const char* name, const H5L_info_t*, void* into) {
  static_cast<std::vector<std::string>*>(into)->emplace_back(name);
  return 0;
}

Hdf5Dataset describe(hid_t file, const std::string& name, const std::filesystem::path& path) {
  const Dataset dataset(
      checked<CheckpointError>(H5Dopen2(file, name.c_str(), H5P_DEFAULT), path, "cannot open a dataset"));
  const Property creation(H5Dget_create_plist(dataset));
  if (H5Pget_layout(creation) != H5D_CONTIGUOUS || H5Pget_external_count(creation) != 0) {
    throw CheckpointError(fmt::format("{}: tensor \"{}\": its HDF5 layout is not contiguous", path.string(), name));
  }
  const Type type(H5Dget_type(dataset));
  const Space space(H5Dget_space(dataset));
  Hdf5Dataset result{name, dtype_of(type, path, name), {}, 0, 0};
  const int rank = H5Sget_simple_extent_ndims(space);
  if (rank < 0 || rank > H5S_MAX_RANK) {
    throw CheckpointError(fmt::format("{}: tensor \"{}\": its shape cannot be read", path.string(), name));
  }
  std::array<hsize_t, H5S_MAX_RANK> sizes{};
  H5Sget_simple_extent_dims(space, sizes.data(), nullptr);
  for (int axis = 0; axis < rank; ++axis) result.shape.push_back(static_cast<int64_t>(sizes[axis]));
  result.bytes = H5Dget_storage_size(dataset);
  const haddr_t offset = H5Dget_offset(dataset);
  result.offset = offset == HADDR_UNDEF ? 0 : offset;
  return result;
}

}  // namespace

std::vector<Hdf5Dataset> Hdf5Reader::datasets() const {
  const std::lock_guard lock(hdf5_mutex());
  std::vector<std::string> names;
  hsize_t index = 0;
  checked<CheckpointError>(H5Literate(*impl_->file, H5_INDEX_NAME, H5_ITER_INC, &index, collect_name, &names),
                           impl_->path, "cannot list the datasets");
  std::vector<Hdf5Dataset> result;
  for (const std::string& name : names) {
    const Object object(checked<CheckpointError>(H5Oopen(*impl_->file, name.c_str(), H5P_DEFAULT), impl_->path,
                                                 "cannot open an object"));
    if (H5Iget_type(object) == H5I_DATASET) result.push_back(describe(*impl_->file, name, impl_->path));
  }
  return result;
}

std::optional<std::string> Hdf5Reader::text_attribute(const std::string& object, const std::string& name) const {
  const std::lock_guard lock(hdf5_mutex());
  const Object target(checked<CheckpointError>(
      H5Oopen(*impl_->file, object.empty() ? "/" : object.c_str(), H5P_DEFAULT), impl_->path, "cannot open an object"));
  return read_text_attribute(target, name.c_str(), impl_->path);
}

std::vector<std::string> Hdf5Reader::attribute_names(const std::string& object) const {
  const std::lock_guard lock(hdf5_mutex());
  const Object target(checked<CheckpointError>(
      H5Oopen(*impl_->file, object.empty() ? "/" : object.c_str(), H5P_DEFAULT), impl_->path, "cannot open an object"));
  std::vector<std::string> names;
  H5Aiterate2(
      target, H5_INDEX_NAME, H5_ITER_INC, nullptr,
      [](hid_t, const char* name, const H5A_info_t*, void* into) -> herr_t {
        static_cast<std::vector<std::string>*>(into)->emplace_back(name);
        return 0;
      },
      &names);
  return names;
}

struct Hdf5Writer::Impl {
  std::filesystem::path path;
  std::unique_ptr<File> file;
  struct Place {
    uint64_t offset = 0, bytes = 0, row_bytes = 0;
  };
  std::map<std::string, Place> places;
  int descriptor = -1;  // a second door to the same file, for tensor data

  ~Impl() {
    if (descriptor >= 0) ::close(descriptor);
  }

  void write_at(uint64_t offset, std::span<const std::byte> bytes) const {
    while (!bytes.empty()) {
      const ssize_t count = ::pwrite(descriptor, bytes.data(), bytes.size(), static_cast<off_t>(offset));
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) throw_system_error("cannot write", path, errno);
      offset += static_cast<uint64_t>(count);
      bytes = bytes.subspan(static_cast<size_t>(count));
    }
  }

  hid_t committed_type(Dtype dtype) {
    const std::string name = dtype == Dtype::kBF16 ? kBfloat16 : fmt::format("{}{}", kTypePrefix, dtype_name(dtype));
    if (H5Lexists(*file, name.c_str(), H5P_DEFAULT) > 0) return H5Topen2(*file, name.c_str(), H5P_DEFAULT);
    const hid_t type = make_type(dtype);
    const Property creation(timeless(H5P_DATATYPE_CREATE));
    checked<Error>(H5Tcommit2(*file, name.c_str(), type, H5P_DEFAULT, creation, H5P_DEFAULT), path,
                   "cannot write a type");
    write_attribute(type, kDtypeAttribute, std::string(dtype_name(dtype)));
    return type;
  }

  void write_attribute(hid_t object, const char* name, const std::string& value) {
    const Type type(H5Tcopy(H5T_C_S1));
    H5Tset_size(type, value.size() + 1);
    H5Tset_cset(type, H5T_CSET_UTF8);
    const Space space(H5Screate(H5S_SCALAR));
    const Attribute attribute(checked<Error>(H5Acreate2(object, name, type, space, H5P_DEFAULT, H5P_DEFAULT), path,
                                             "cannot write an attribute"));
    checked<Error>(H5Awrite(attribute, type, value.c_str()), path, "cannot write an attribute");
  }
};

Hdf5Writer::Hdf5Writer(const std::filesystem::path& path) : impl_(std::make_unique<Impl>()) {
  const std::lock_guard lock(hdf5_mutex());
  prepare_hdf5();
  impl_->path = path;
  const Property access(H5Pcreate(H5P_FILE_ACCESS)), creation(timeless(H5P_FILE_CREATE));
  // Data start at whole pages, so that a mapped file gives aligned tensors. Small data must not share a block, or only
  // the first is aligned.
  H5Pset_alignment(access, 1, kAlignment);
  H5Pset_small_data_block_size(access, 0);
  H5Pset_file_locking(access, false, true);  // the temporary file has its own lock (AtomicFile)
  H5Pset_libver_bounds(access, H5F_LIBVER_V18, H5F_LIBVER_V110);
  impl_->file = std::make_unique<File>(
      checked<Error>(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, creation, access), path, "cannot create the file"));
  impl_->descriptor = ::open(path.c_str(), O_WRONLY | O_CLOEXEC);
  if (impl_->descriptor < 0) throw_system_error("cannot write", path, errno);
}

Hdf5Writer::~Hdf5Writer() {
  const std::lock_guard lock(hdf5_mutex());
  impl_.reset();
}

void Hdf5Writer::create(const std::string& dataset, Dtype dtype, const std::vector<int64_t>& shape) {
  const std::lock_guard lock(hdf5_mutex());
  // A slash would make a group, a dot means the group itself, and committed types have names of their own.
  if (dataset.find('/') != std::string::npos || dataset == "." || dataset == kBfloat16 ||
      dataset.starts_with(kTypePrefix)) {
    throw UnsupportedError(fmt::format("tensor \"{}\": HDF5 output cannot have this name", dataset));
  }
  if (shape.size() > H5S_MAX_RANK) {
    throw UnsupportedError(fmt::format("tensor \"{}\": HDF5 has at most {} axes", dataset, H5S_MAX_RANK));
  }
  const Type type(needs_committed_type(dtype) ? impl_->committed_type(dtype) : make_type(dtype));
  if (type < 0)
    throw UnsupportedError(fmt::format("tensor \"{}\": HDF5 output has no type {}", dataset, dtype_name(dtype)));
  std::vector<hsize_t> sizes(shape.begin(), shape.end());
  const Space space(sizes.empty() ? H5Screate(H5S_SCALAR)
                                  : H5Screate_simple(static_cast<int>(sizes.size()), sizes.data(), nullptr));
  const Property creation(timeless(H5P_DATASET_CREATE));
  H5Pset_layout(creation, H5D_CONTIGUOUS);
  H5Pset_alloc_time(creation, H5D_ALLOC_TIME_EARLY);
  H5Pset_fill_time(creation, H5D_FILL_TIME_NEVER);
  const Dataset created(
      checked<Error>(H5Dcreate2(*impl_->file, dataset.c_str(), type, space, H5P_DEFAULT, creation, H5P_DEFAULT),
                     impl_->path, fmt::format("cannot create \"{}\"", dataset)));
  Impl::Place place;
  const haddr_t offset = H5Dget_offset(created);
  place.offset = offset == HADDR_UNDEF ? 0 : offset;
  place.bytes = H5Dget_storage_size(created);
  place.row_bytes =
      shape.empty() || shape.front() == 0 ? place.bytes : place.bytes / static_cast<uint64_t>(shape.front());
  impl_->places[dataset] = place;
}

void Hdf5Writer::write_rows(const std::string& dataset, int64_t first_row, std::span<const std::byte> bytes) {
  const std::lock_guard lock(hdf5_mutex());
  const auto found = impl_->places.find(dataset);
  if (found == impl_->places.end())
    throw Error(fmt::format("{}: dataset \"{}\" was not created", impl_->path.string(), dataset));
  const Impl::Place& place = found->second;
  const uint64_t begin = static_cast<uint64_t>(first_row) * place.row_bytes;
  if (first_row < 0 || begin > place.bytes || bytes.size() > place.bytes - begin) {
    throw ShapeError(fmt::format("{}: dataset \"{}\": {} bytes from row {} on do not fit", impl_->path.string(),
                                 dataset, bytes.size(), first_row));
  }
  // Past libhdf5: the data of a contiguous dataset have a fixed place, and a full disk keeps its true reason.
  impl_->write_at(place.offset + begin, bytes);
}

uint64_t Hdf5Writer::data_end() const {
  uint64_t end = 0;
  for (const auto& [name, place] : impl_->places) end = std::max(end, place.offset + place.bytes);
  return end;
}

void Hdf5Writer::set_attribute(const std::string& object, const std::string& name, const std::string& value) {
  const std::lock_guard lock(hdf5_mutex());
  const Object target(checked<Error>(H5Oopen(*impl_->file, object.empty() ? "/" : object.c_str(), H5P_DEFAULT),
                                     impl_->path, "cannot open an object"));
  impl_->write_attribute(target, name.c_str(), value);
}

void Hdf5Writer::close() {
  const std::lock_guard lock(hdf5_mutex());
  errno = 0;
  if (H5Fflush(*impl_->file, H5F_SCOPE_GLOBAL) < 0)
    throw_system_error("cannot write", impl_->path, errno != 0 ? errno : EIO);
  if (H5Fclose(impl_->file->release()) < 0) throw_system_error("cannot write", impl_->path, errno != 0 ? errno : EIO);
  impl_->file.reset();
}

}  // namespace cinch
