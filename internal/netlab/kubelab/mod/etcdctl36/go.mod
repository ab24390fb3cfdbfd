module etcdctl36

go 1.26.0

require go.etcd.io/etcd/etcdctl/v3 v3.6.5
