package kubeadm

// The types are those parts of kubeadm.k8s.io/v1beta4 that kubeinit sets, in
// the order in which people read them. Between kubeadm 1.34 and 1.37 none of
// these fields changed.

const v1beta4 = "kubeadm.k8s.io/v1beta4"

type head struct {
	APIVersion string `yaml:"apiVersion"`
	Kind       string `yaml:"kind"`
}

type initConfiguration struct {
	head             `yaml:",inline"`
	BootstrapTokens  []bootstrapToken `yaml:"bootstrapTokens"`
	CertificateKey   string           `yaml:"certificateKey"`
	LocalAPIEndpoint apiEndpoint      `yaml:"localAPIEndpoint"`
	NodeRegistration nodeRegistration `yaml:"nodeRegistration"`
	Timeouts         timeouts         `yaml:"timeouts"`
}

type bootstrapToken struct {
	Token       string `yaml:"token"`
	Description string `yaml:"description"`
	TTL         string `yaml:"ttl"`
}

type clusterConfiguration struct {
	head                 `yaml:",inline"`
	ClusterName          string     `yaml:"clusterName"`
	KubernetesVersion    string     `yaml:"kubernetesVersion"`
	ControlPlaneEndpoint string     `yaml:"controlPlaneEndpoint"`
	ImageRepository      string     `yaml:"imageRepository,omitempty"`
	Networking           networking `yaml:"networking"`
	APIServer            apiServer  `yaml:"apiServer"`
	ControllerManager    component  `yaml:"controllerManager"`
	Etcd                 *etcd      `yaml:"etcd,omitempty"`
}

type networking struct {
	PodSubnet     string `yaml:"podSubnet"`
	ServiceSubnet string `yaml:"serviceSubnet"`
	DNSDomain     string `yaml:"dnsDomain,omitempty"`
}

type apiServer struct {
	CertSANs  []string `yaml:"certSANs"`
	ExtraArgs []arg    `yaml:"extraArgs,omitempty"`
}

type component struct {
	ExtraArgs []arg `yaml:"extraArgs,omitempty"`
}

type etcd struct {
	Local localEtcd `yaml:"local"`
}

type localEtcd struct {
	ExtraArgs      []arg    `yaml:"extraArgs,omitempty"`
	ServerCertSANs []string `yaml:"serverCertSANs,omitempty"`
	PeerCertSANs   []string `yaml:"peerCertSANs,omitempty"`
}

type arg struct {
	Name  string `yaml:"name"`
	Value string `yaml:"value"`
}

type apiEndpoint struct {
	AdvertiseAddress string `yaml:"advertiseAddress"`
	BindPort         int    `yaml:"bindPort"`
}

type nodeRegistration struct {
	Name                  string   `yaml:"name"`
	CRISocket             string   `yaml:"criSocket"`
	ImagePullPolicy       string   `yaml:"imagePullPolicy"`
	ImagePullSerial       *bool    `yaml:"imagePullSerial"`
	Taints                []taint  `yaml:"taints"`
	KubeletExtraArgs      []arg    `yaml:"kubeletExtraArgs"`
	IgnorePreflightErrors []string `yaml:"ignorePreflightErrors,omitempty"`
}

type taint struct {
	Key    string `yaml:"key"`
	Value  string `yaml:"value,omitempty"`
	Effect string `yaml:"effect"`
}

type joinConfiguration struct {
	head             `yaml:",inline"`
	Discovery        discovery         `yaml:"discovery"`
	ControlPlane     *joinControlPlane `yaml:"controlPlane,omitempty"`
	NodeRegistration nodeRegistration  `yaml:"nodeRegistration"`
	Timeouts         timeouts          `yaml:"timeouts"`
}

type discovery struct {
	BootstrapToken bootstrapTokenDiscovery `yaml:"bootstrapToken"`
}

type bootstrapTokenDiscovery struct {
	APIServerEndpoint string   `yaml:"apiServerEndpoint"`
	Token             string   `yaml:"token"`
	CACertHashes      []string `yaml:"caCertHashes"`
}

type joinControlPlane struct {
	LocalAPIEndpoint apiEndpoint `yaml:"localAPIEndpoint"`
	CertificateKey   string      `yaml:"certificateKey"`
}

type resetConfiguration struct {
	head          `yaml:",inline"`
	CRISocket     string   `yaml:"criSocket"`
	Force         bool     `yaml:"force"`
	CleanupTmpDir bool     `yaml:"cleanupTmpDir"`
	Timeouts      timeouts `yaml:"timeouts"`
}

type timeouts struct {
	ControlPlaneComponentHealthCheck string `yaml:"controlPlaneComponentHealthCheck"`
	KubeletHealthCheck               string `yaml:"kubeletHealthCheck"`
	KubernetesAPICall                string `yaml:"kubernetesAPICall"`
	EtcdAPICall                      string `yaml:"etcdAPICall"`
	TLSBootstrap                     string `yaml:"tlsBootstrap"`
	Discovery                        string `yaml:"discovery"`
}
